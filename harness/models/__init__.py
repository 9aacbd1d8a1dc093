"""Models: how they are read and saved, chat templates, the forward passes, and their memory."""
