"""All methods of a store on one page."""
