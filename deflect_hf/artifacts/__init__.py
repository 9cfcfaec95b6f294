"""What a run leaves: the saved model and its environment."""
