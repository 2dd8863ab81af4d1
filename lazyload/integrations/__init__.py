"""What runs of other libraries need: MaxText and Tunix."""
