"""A shop of three services that survive the loss of any process: `python -m zfabric.examples.shop`.

`order.place` is a saga: it charges, then books a parcel; where there is no stock it takes the charge back. Each step is
keyed by the order's number and saved under it, so that doing it again does nothing: that is what makes it safe to call
with `idempotent=True`, which tries again elsewhere when a provider dies.
"""
