"""Links of real packets, and checks of what emulates them."""
