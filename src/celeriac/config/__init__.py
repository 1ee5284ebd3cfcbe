"""Read and check settings; nothing else reads them."""

from celeriac.config.executor_config import Config as Config

__all__ = ["Config"]
