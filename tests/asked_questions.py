"""Questions of one round, with ids that are hard to write into a file."""

from cpeal_jax.labeling.questions import Question

QUESTIONS = {
  q.id: q
  for q in (
    Question("a.jpg", 1, "cat", 0.5, "near a border"),
    Question("b.jpg", 1, "dog", 0.25),
    Question("dir/c d.jpg", 1, "cat", 0.75),
    Question("ä.jpg", 1, "Käse", 0.75),
    Question("=e.jpg", 1, "=1+1", 0.5),
    Question("audit.jpg", 1, "cat", 0.875, "not to be seen", "audit"),
  )
}
