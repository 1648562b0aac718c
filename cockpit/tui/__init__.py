"""The screens; only `cockpit.cli` opens them."""
