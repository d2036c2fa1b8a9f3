"""Studies of gradient fields: how well and at what cost networks learn them."""
