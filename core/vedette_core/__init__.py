"""How it is computed: shared by all components, knows none of them."""
