"""What is said about a compiled program: `verdict` (does it fit), `roofline` (bounds on its time), `page` (tables)."""
