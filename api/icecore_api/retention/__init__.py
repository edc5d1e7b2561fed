"""What is kept and for how long: expiry, erasing what nobody needs, and what it all weighs."""
