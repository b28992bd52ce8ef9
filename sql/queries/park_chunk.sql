-- One piece of a body, in the transaction of its dead letter.
insert into postrider.dead_letter_chunks (dead_letter, no, data) values ($1, $2, $3)
