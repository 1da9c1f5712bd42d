-- The table that says who the tenants are, and the triggers that tell Perseus at once when a row changes.
--
--   psql -v ON_ERROR_STOP=1 -f perseus_auth.sql "$AUTH_DATABASE"
--
-- Can be run again at any time, also while Perseus runs. A table that is there already, in whichever schema of the
-- search_path, is kept and gets the triggers; without them a change takes effect, for new logins as for clients that are
-- connected, within about AuthDBSettings.AuthCacheTtlSecs.
--
-- The notifications hold the names of the changed row's source_db and source_schema and nothing else: everybody who may
-- connect to a database can listen to all of its channels.

BEGIN;

-- What follows belongs where the table is, or else where the next table would be made. Until the end of the transaction.
SELECT pg_catalog.set_config(
    'search_path',
    COALESCE(
        (SELECT relnamespace::pg_catalog.regnamespace::pg_catalog.text
           FROM pg_catalog.pg_class
          WHERE oid = pg_catalog.to_regclass('perseus_auth')),
        pg_catalog.quote_ident(pg_catalog.current_schema())
    ),
    true
);

CREATE TABLE IF NOT EXISTS perseus_auth (
    id serial PRIMARY KEY,
    source_db character varying(1024),
    source_schema character varying(64),
    source_user character varying(64),
    source_pass_hashed character varying(1024),
    dest_host character varying(64),
    dest_db character varying(1024),
    dest_pass_enc character varying(1024),
    dest_user character varying(64),
    UNIQUE (source_db, source_schema)
);

CREATE OR REPLACE FUNCTION perseus_auth_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys json[] := '{}';
    payload text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('perseus_auth', '');
        RETURN NULL;
    END IF;
    -- An update of the key concerns two tenants: the one that was and the one that is.
    IF TG_OP <> 'INSERT' THEN
        keys := keys || json_build_object('db', OLD.source_db, 'schema', OLD.source_schema);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        keys := keys || json_build_object('db', NEW.source_db, 'schema', NEW.source_schema);
    END IF;
    FOREACH payload IN ARRAY keys::text[] LOOP
        -- PostgreSQL takes less than 8000 bytes. An empty payload says that any row may have changed.
        PERFORM pg_notify('perseus_auth', CASE WHEN octet_length(payload) < 8000 THEN payload ELSE '' END);
    END LOOP;
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS perseus_auth_changed ON perseus_auth;
CREATE TRIGGER perseus_auth_changed
    AFTER INSERT OR UPDATE OR DELETE ON perseus_auth
    FOR EACH ROW EXECUTE PROCEDURE perseus_auth_changed();

DROP TRIGGER IF EXISTS perseus_auth_truncated ON perseus_auth;
CREATE TRIGGER perseus_auth_truncated
    AFTER TRUNCATE ON perseus_auth
    FOR EACH STATEMENT EXECUTE PROCEDURE perseus_auth_changed();

COMMIT;
