"""How the weights that fedbench ships are made."""
