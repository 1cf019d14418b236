"""Floor 7. Frameworks that load and run models. Each file imports its framework, and nothing imports these files but their users."""
