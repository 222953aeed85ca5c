"""Uses of the public face, as a user's code has them: checked by pyright, too."""
