"""`resbench` with the planted network known by its name, in this process and in its workers.

Importing this module makes it known, in whichever process does so: never in that of the tests.
"""

from bench.__main__ import main
from bench.workers import parent
from resnet.models.table import NETWORKS
from tests.support.planted_network import NAME, ROW

NETWORKS[NAME] = ROW


def resbench() -> None:
    """Run the command line."""
    parent._PRELOAD.append(__name__)
    main()
