"""What a controller is made of: books of room, copies and wishes, and the event that moves them."""
