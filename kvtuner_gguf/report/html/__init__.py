"""One HTML page that says what a plan is worth: inline SVG, no script, nothing from the network."""
