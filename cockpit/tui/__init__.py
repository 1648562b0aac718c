"""The screens. Only `cockpit.cli` opens them."""
