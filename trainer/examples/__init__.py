"""Show training loops that learn from a store's logits.

``python -m logitstore.trainer.examples.NAME …`` runs one.

They are written as people write their loops, without annotations; tests run each of them.
"""

from __future__ import annotations
