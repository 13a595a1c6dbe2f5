"""The subcommands, thin over the functions that they call; each module adds its own to the app."""
