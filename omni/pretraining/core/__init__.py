"""The document's places of the second system's parts."""
