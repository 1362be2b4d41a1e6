"""Parts of the product by themselves."""
