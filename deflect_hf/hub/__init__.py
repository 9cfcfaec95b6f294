"""Trained models on the Hugging Face Hub: push them, fetch them, describe them, and trust nothing that was fetched."""
