"""Who is connected, and who may be: the live sessions and the limits that count them."""
