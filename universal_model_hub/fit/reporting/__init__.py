"""How good a model became: scores with their intervals, and the page that shows them."""
