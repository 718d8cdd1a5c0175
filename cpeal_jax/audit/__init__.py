"""How good the predictions are, without a test set.

Some images of the pool are drawn at random, a person labels them, and they are
never trained on: the audits. They alone support a statement about the pool.
Labels that an acquisition method chose do not, because it chooses images that
are unlike the rest.

`permutation` says which images are audited, and which images a statement is
then about. `intervals` and `prediction_powered` estimate the accuracy of a
model. `certificate`, which stands on the test in `precision`, and
`conformal_labeling` say which predictions may be taken as labels.
"""
