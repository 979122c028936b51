"""What scikit-learn's k-means of either kind is asked for and given, by a module that calls it."""

from __future__ import annotations

from types import SimpleNamespace


def noted(monkeypatch, module):
    """Note settings and rows of each fit, in ``fits``, and the limits of ``threads``."""
    notes, limits = SimpleNamespace(fits=[], threads=[]), module.threadpool_limits

    def noting(kind, method):
        def fit(own, rows):
            notes.fits.append((own.get_params(), rows.copy()))
            return getattr(kind, method)(own, rows)

        monkeypatch.setattr(module, kind.__name__, type(kind.__name__, (kind,), {method: fit}))

    noting(module.KMeans, "fit")
    noting(module.MiniBatchKMeans, "partial_fit")
    monkeypatch.setattr(module, "threadpool_limits", lambda n: notes.threads.append(n) or limits(1))
    return notes
