"""Catalogue of devices, node types, models and clusters; readers of what users give instead."""

from profiler.catalog.cluster_file import (
    cluster_from_name,
    cluster_from_text,
    list_clusters,
    load_cluster,
    read_cluster,
)
from profiler.catalog.load import (
    CatalogItem,
    DeviceEntry,
    list_devices,
    list_models,
    list_nodes,
    load_device,
    load_model,
)
from profiler.catalog.resolve import resolve_cluster, resolve_model

__all__ = [
    "CatalogItem",
    "DeviceEntry",
    "cluster_from_name",
    "cluster_from_text",
    "list_clusters",
    "list_devices",
    "list_models",
    "list_nodes",
    "load_cluster",
    "load_device",
    "load_model",
    "read_cluster",
    "resolve_cluster",
    "resolve_model",
]
