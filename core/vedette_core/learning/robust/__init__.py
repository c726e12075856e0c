"""Robust rules over group means: what the aggregator takes instead of the plain mean, and what each is good for.

Under secure aggregation nobody sees one device's update: a rule sees the mean of each group, ``(groups, weights)``.
That changes what rules can do. A mean of 8 devices of which one lies is a little wrong, not an outlier, so rules that
look for outliers among groups (median, trimmed mean, Krum) gain little once devices' updates are clipped; a rule that
compares each group's direction with an update trained on a small clean root set does. ``bench/poisoning.py`` measures
both.

None of these rules is proven against a *targeted backdoor*: an update that keeps the usual direction and norm and only
changes what the model says about rows with a chosen pattern looks like an honest one to every rule here.
"""
