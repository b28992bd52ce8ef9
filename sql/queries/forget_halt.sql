-- The relay carries: what it looked up again is gone. A halt that a person has to decide is not.
delete from postrider.halts where slot = $1 and not decided_by_a_person
