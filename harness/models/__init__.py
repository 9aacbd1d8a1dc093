"""Models: loading, saving, chat templates, the forward passes, and their memory."""
