"""Samples for a model: user data checked and streamed into a feed folder that every step reads.

A feed folder holds feed.json and one .npy an input, [count, *input shape without its batch axis] in the
input's dtype, plus int64 labels [count] if there are any. It is written aside and published in one rename.
Reading is in readers.py; memory stays at a few chunks, whatever the data weighs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.errors import LeptonError
from lepton_edge.preprocess import Preprocess
