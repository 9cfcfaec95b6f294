"""What a user can configure: typed groups, files and flags."""
