\set number random(1, 2000000000)
INSERT INTO rows (id, created_at, body) VALUES (md5(random()::text || :number), now(), :body);
