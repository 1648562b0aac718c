"""The limits of a shipment: what a file must have shown before it is used."""
