"""Tools that use what the experiments leave."""
