"""The demo: pictures with and without acceleration, from a small model of our own or from the user's."""
