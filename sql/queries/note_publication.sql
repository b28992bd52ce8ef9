-- What is published has grown: from now on it may not shrink. $2: the relay's epoch; $3: what the publications are made of.
update postrider.progress
set publication_state = $3, updated_at = now()
where slot = $1 and relay_epoch = $2
