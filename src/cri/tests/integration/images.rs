//! Images: archives and registries.

use crate::lab::*;
use skiff_cri::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn archives_of_both_kinds_and_all_compressions() {
    run(|mut lab| async move {
        let runtime = lab.connect().await;
        let oci = busybox_archive();
        let docker = docker_archive("example.com/made/by:docker");
        let compressed = zstd::stream::encode_all(&oci[..], 1).unwrap();
        for bytes in [oci, compressed, docker] {
            let images = runtime
                .import_image_stream(Box::new(std::io::Cursor::new(bytes)))
                .await
                .unwrap();
            assert_eq!(images.len(), 1);
        }
        let images = runtime.images().await.unwrap();
        assert_eq!(images.len(), 1, "one content, one image: {images:?}");
        assert_eq!(images[0].repo_tags, [IMAGE, "example.com/made/by:docker"]);
        assert_eq!(images[0].config.env, ["FROM_IMAGE=yes"]);
        for name in ["busybox:test", "example.com/made/by:docker", &images[0].id] {
            assert_eq!(
                runtime.image(name).await.unwrap().as_ref(),
                Some(&images[0]),
                "{name}"
            );
        }
        assert_eq!(runtime.image("busybox:other").await.unwrap(), None);
        assert!(runtime.image_fs().await.unwrap().used_bytes > 100_000);

        let sandbox = lab.sandbox(&runtime).await;
        let mut config = lab.script("by-id", "");
        (config.image, config.command) = (images[0].id.clone(), Vec::new());
        let id = start(&runtime, &sandbox, config).await;
        ended(&runtime, &id).await;
        assert_eq!(lines(&lab.log("by-id")), ["stdout F default"]);
        runtime.remove_sandbox(&sandbox.id).await.unwrap();

        runtime.remove_image("busybox:test").await.unwrap();
        assert_eq!(runtime.images().await.unwrap().len(), 1, "another name is left");
        runtime.remove_image(&images[0].id).await.unwrap();
        assert_eq!(runtime.images().await.unwrap(), []);
        assert_eq!(
            runtime.image_fs().await.unwrap().used_bytes,
            0,
            "snapshots are collected"
        );
        drop(runtime);
        lab
    });
}

#[test]
fn broken_archives_are_refused_with_the_reason() {
    run(|mut lab| async move {
        let runtime = lab.connect().await;
        let good = busybox_archive();
        let mut flipped = good.clone();
        let place = flipped
            .windows(11)
            .position(|window| window == b"FROM_IMAGE=")
            .unwrap();
        flipped[place] = b'X';
        for (name, bytes, want) in [
            (
                "garbage",
                b"not an archive".to_vec(),
                "not a readable image archive",
            ),
            (
                "empty",
                tar::Builder::new(Vec::new()).into_inner().unwrap(),
                "neither index.json nor manifest.json",
            ),
            ("torn", good[..good.len() / 2].to_vec(), "archive"),
            ("flipped", flipped, "digest"),
        ] {
            let error = runtime
                .import_image_stream(Box::new(std::io::Cursor::new(bytes)))
                .await
                .unwrap_err();
            assert!(error.to_string().contains(want), "{name}: {error}");
        }
        assert_eq!(runtime.images().await.unwrap(), []);
        drop(runtime);
        lab
    });
}

#[test]
fn images_are_pulled_from_a_registry() {
    run(|mut lab| async move {
        let folder = lab.folder.path().to_path_buf();
        let (storage, archive) = (folder.join("registry"), folder.join("image.tar"));
        let settings = folder.join("registry.yml");
        // user:secret
        let passwords = folder.join("htpasswd");
        std::fs::write(
            &passwords,
            "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
        )
        .unwrap();
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n\
             auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            storage.display(),
            passwords.display()
        );
        std::fs::write(&settings, text).unwrap();
        std::fs::write(&archive, busybox_archive()).unwrap();
        let log = std::fs::File::create(folder.join("registry.log")).unwrap();
        let mut registry = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(&settings)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry");
        let up = async {
            while tokio::net::TcpStream::connect("127.0.0.1:5000").await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.unwrap();
        let source = format!("oci-archive:{}:busybox:test", archive.display());
        let target = "docker://127.0.0.1:5000/team/app:1";
        run_command(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                "--dest-creds=user:secret",
                &source,
                target,
            ],
        );

        let mirror = containerd::registry::Mirror {
            endpoint: vec!["http://127.0.0.1:5000".into()],
        };
        lab.config
            .registries
            .mirrors
            .insert("mirrored.example".into(), mirror);
        let login = containerd::registry::RegistryLogin {
            username: "user".into(),
            password: "secret".into(),
            ..Default::default()
        };
        let settings = containerd::registry::RegistryConfig {
            auth: Some(login),
            tls: None,
        };
        let auth = ImageAuth::Basic {
            username: "user".into(),
            password: "secret".into(),
        };
        let runtime = lab.connect().await;
        for wrong in [
            None,
            Some(ImageAuth::Basic {
                username: "user".into(),
                password: "no".into(),
            }),
        ] {
            let denied = runtime
                .pull_image("127.0.0.1:5000/team/app:1", wrong, None)
                .await
                .unwrap_err();
            assert!(
                matches!(&denied, RuntimeError::Image { retry: false, message, .. } if message.contains("denies")),
                "{denied:?}"
            );
        }
        let fetched = Arc::new(AtomicU64::new(0));
        let seen = fetched.clone();
        let progress: Progress = Arc::new(move |now| seen.store(now.fetched_bytes, Ordering::Relaxed));
        let image = runtime
            .pull_image("127.0.0.1:5000/team/app:1", Some(auth), Some(progress))
            .await
            .unwrap();
        assert_eq!(image.repo_tags, ["127.0.0.1:5000/team/app:1"]);
        let digest = image.repo_digests[0].clone();
        assert!(digest.starts_with("127.0.0.1:5000/team/app@sha256:"), "{digest}");
        assert!(fetched.load(Ordering::Relaxed) > 100_000);
        lab.disconnect(runtime).await;
        lab.config
            .registries
            .configs
            .insert("127.0.0.1:5000".into(), settings);
        let runtime = lab.connect().await;
        assert_eq!(
            runtime.pull_image(&digest, None, None).await.unwrap().id,
            image.id
        );
        let mirrored = runtime
            .pull_image("mirrored.example/team/app:1", None, None)
            .await
            .unwrap();
        assert!(
            mirrored
                .repo_tags
                .contains(&"mirrored.example/team/app:1".to_owned())
        );

        let missing = runtime
            .pull_image("127.0.0.1:5000/team/app:none", None, None)
            .await
            .unwrap_err();
        assert!(
            matches!(&missing, RuntimeError::Image { retry: false, .. }),
            "{missing:?}"
        );
        let nobody = runtime
            .pull_image("127.0.0.1:5001/a:1", None, None)
            .await
            .unwrap_err();
        assert!(
            matches!(&nobody, RuntimeError::Image { retry: true, .. }),
            "{nobody:?}"
        );
        let invalid = runtime.pull_image("UPPER CASE", None, None).await;
        assert!(matches!(invalid, Err(RuntimeError::Invalid(_))));

        let sandbox = lab.sandbox(&runtime).await;
        let mut config = lab.script("pulled", "echo pulled");
        config.image = digest.clone();
        let id = start(&runtime, &sandbox, config).await;
        let container = ended(&runtime, &id).await;
        assert!(container.image_id.contains("@sha256:"), "{}", container.image_id);
        assert_eq!(lines(&lab.log("pulled")), ["stdout F pulled"]);
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        registry.kill().unwrap();
        registry.wait().unwrap();
        drop(runtime);
        lab
    });
}
