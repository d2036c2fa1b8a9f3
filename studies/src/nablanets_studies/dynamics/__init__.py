"""Studies of dynamics and forces: Hamiltonian systems, planets, a molecule."""
