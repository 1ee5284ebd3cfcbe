"""The newest messages that workers have refused, in the store of the result backend.

worker ─► RefusedStore.add ─► Redis or a database ─► RefusedStore.newest ─► `celeriac status --refused`
"""

from celeriac.backend.refused.message import RefusedMessage, RefusedStore
from celeriac.backend.refused.open import refused_store_for

__all__ = ["RefusedMessage", "RefusedStore", "refused_store_for"]
