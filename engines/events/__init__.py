"""The events of a run's journal: their meaning, their units, and their form on the wire.

A record is one JSON object on one line. It begins `{"v":1,"w":"<writer>","seq":<n>,"t":<Unix s>,"m":<monotonic s>,`;
the event follows: `"k":"<kind>"` and its fields. Names have units: `_s` seconds, `_bytes` bytes. Losses are mean nats
per loss token. JSON cannot write NaN and the infinities, so they are the strings "NaN", "Infinity" and "-Infinity";
null means "not measurable" and is never zero. A field may be missing when it has its default value.
"""
