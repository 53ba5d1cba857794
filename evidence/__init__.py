"""How well it works: statistics, answers and reports, the papers' claims, the speed."""
