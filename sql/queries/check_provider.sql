-- The role by which a managed service lets a user replicate, or whose members may give that right; null elsewhere.
select (
    select role.rolname::text
    from pg_catalog.pg_roles as role
    join (values (1, 'rds_replication'), (2, 'cloudsqlsuperuser'), (3, 'alloydbsuperuser'), (4, 'azure_pg_admin')) as known (place, name)
        on known.name = role.rolname
    order by known.place
    limit 1
) as provider
