//! Runs cases: under the control and under each runtime, as many in one container as do not disturb each other.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::case::{Case, Finding, Obstacle, Profile, Scene, Shares, Stage, Threat};
use crate::host::{self, Host};
use crate::image;
use crate::runtime::{Container, Runc, Runtime, RuntimeError, SpecSource, Started};
use crate::session::{Session, SessionError, Writer};
use crate::spec::Grantable;
use crate::verdict::{Observation, Outcome, Verdict, verdict};

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// What all cases need cannot be made.
    #[error("cannot set up the isolation test in {}", folder.display())]
    SetUp {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever runs us wants an end.
    #[error("interrupted; every container was removed")]
    Interrupted,
}

/// What is to be tried, and with what.
pub struct Campaign<'a> {
    /// The cases.
    pub cases: Vec<&'static Case>,
    /// The runtimes under test.
    pub runtimes: Vec<Box<dyn Runtime>>,
    /// The static probe.
    pub probe: &'a Path,
    /// A folder that is removed afterwards, by whoever made it.
    pub folder: &'a Path,
    /// Makes configurations as `sandboxctl run` does.
    pub spec: SpecSource<'a>,
    /// Becomes true when everything should end.
    pub stop: &'static AtomicBool,
    /// Is told what happens.
    pub progress: &'a dyn Fn(&str),
}

/// What came out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This machine's kernel.
    pub kernel: String,
    /// What the control was.
    pub control: String,
    /// The runtimes under test.
    pub runtimes: Vec<String>,
    /// Case by case.
    pub cases: Vec<CaseReport>,
}

/// A case, its control, and each runtime.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: &'static str,
    /// Whom it threatens.
    pub threat: Threat,
    /// What the probe did.
    pub attempt: &'static str,
    /// What the host watched.
    pub watch: &'static str,
    /// What had to come out.
    pub expected: &'static str,
    /// How the container under test was made.
    pub profile: Profile,
    /// How the control was made.
    pub control_profile: Profile,
    /// What the control showed.
    pub control: Observation,
    /// What the runtimes showed, in the report's order.
    pub runtimes: Vec<RuntimeReport>,
}

/// What a runtime showed in a case.
#[derive(Debug, Serialize)]
pub struct RuntimeReport {
    /// Its name.
    pub runtime: String,
    /// The judgement.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What it rests on.
    pub observation: Observation,
}

impl Report {
    /// Every judgement.
    pub fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.cases
            .iter()
            .flat_map(|case| case.runtimes.iter().map(|one| &one.verdict))
    }

    /// How many of this outcome there are.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.verdicts()
            .filter(|verdict| verdict.outcome == outcome)
            .count()
    }

    /// What the program ends with: 0 when nothing was breached and every question answered; 1 for a breach; 2 for an invalid
    /// control or a runtime that gave no answer; 3 when nothing could be tried.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.count(Outcome::Breached) > 0 {
            return 1;
        }
        let open = self.verdicts().any(|verdict| verdict.unanswered);
        if open || self.count(Outcome::InvalidControl) > 0 {
            return 2;
        }
        if self.count(Outcome::Held) + self.count(Outcome::Degraded) == 0 {
            return 3;
        }
        0
    }
}

/// What the runs of one runtime showed, by the case's name.
type Observations = BTreeMap<&'static str, Observation>;

impl Campaign<'_> {
    /// Runs everything.
    ///
    /// # Errors
    /// When nothing could be tried. What fails in a case is its outcome.
    pub fn run(&self) -> Result<Report, CampaignError> {
        let failed = |source| CampaignError::SetUp {
            folder: self.folder.to_owned(),
            source,
        };
        let host = Host::new(self.folder, self.probe).map_err(failed)?;
        let common_root = self.folder.join("root");
        image::write_folder(&common_root, self.probe).map_err(failed)?;
        let field = Field {
            campaign: self,
            host: &host,
            common_root: &common_root,
            grantable: Grantable::here(),
        };
        let obstacle = field.control_obstacle();
        if self.stop.load(Ordering::Relaxed) {
            return Err(CampaignError::Interrupted);
        }
        if let Some(reason) = obstacle {
            let none = Observation::Obstacle { reason };
            let control = self.cases.iter().map(|case| (case.name, none.clone()));
            return Ok(self.report(&control.collect(), &[]));
        }
        let control = field.run(&Runc, &|case| case.control)?;
        let mut subjects = Vec::new();
        for runtime in &self.runtimes {
            subjects.push(field.run(runtime.as_ref(), &|case| case.profile)?);
        }
        Ok(self.report(&control, &subjects))
    }

    fn report(&self, control: &Observations, subjects: &[Observations]) -> Report {
        let missing = || Observation::NoAnswer {
            reason: "it was not tried".to_owned(),
        };
        let of = |all: &Observations, case: &Case| all.get(case.name).cloned();
        let cases = self.cases.iter().map(|case| {
            let control = of(control, case).unwrap_or_else(missing);
            let runtimes = self.runtimes.iter().enumerate().map(|(at, runtime)| {
                let all = subjects.get(at);
                let observation = all.and_then(|all| of(all, case)).unwrap_or_else(missing);
                RuntimeReport {
                    runtime: runtime.name().to_owned(),
                    verdict: verdict(&control, &observation),
                    observation,
                }
            });
            CaseReport {
                name: case.name,
                threat: case.threat,
                attempt: case.attempt,
                watch: case.watch,
                expected: case.expected,
                profile: case.profile,
                control_profile: case.control,
                runtimes: runtimes.collect(),
                control,
            }
        });
        Report {
            kernel: host::first_line("/proc/version"),
            control: Runc.name().to_owned(),
            runtimes: self
                .runtimes
                .iter()
                .map(|one| one.name().to_owned())
                .collect(),
            cases: cases.collect(),
        }
    }
}

/// Where cases run.
struct Field<'a> {
    campaign: &'a Campaign<'a>,
    host: &'a Host,
    common_root: &'a Path,
    grantable: Grantable,
}

/// The containers of one profile of one runtime, started when they are needed.
struct Pair<'a> {
    field: &'a Field<'a>,
    runtime: &'a dyn Runtime,
    profile: Profile,
    main: Option<(Session, Shares)>,
    peer: Option<(Session, Shares)>,
}

impl Field<'_> {
    /// Why nothing can be tried here: the control itself does not run.
    fn control_obstacle(&self) -> Option<String> {
        if let Some(reason) = Runc.obstacle() {
            return Some(format!("no control: {reason}"));
        }
        let error = self.start(&Runc, Profile::Plain).err()?;
        Some(format!("no control: runc runs no containers here: {error}"))
    }

    fn run(
        &self,
        runtime: &dyn Runtime,
        profile_of: &dyn Fn(&Case) -> Profile,
    ) -> Result<Observations, CampaignError> {
        let mut groups: BTreeMap<Profile, Vec<&'static Case>> = BTreeMap::new();
        for case in &self.campaign.cases {
            groups.entry(profile_of(case)).or_default().push(case);
        }
        let mut observations = Observations::new();
        for (profile, cases) in groups {
            let (name, title) = (runtime.name(), profile.title());
            (self.campaign.progress)(&format!("{name}, {title}: {} cases", cases.len()));
            let mut pair = Pair {
                field: self,
                runtime,
                profile,
                main: None,
                peer: None,
            };
            for case in cases {
                let observation = match runtime.obstacle() {
                    Some(reason) => Observation::Obstacle { reason },
                    None => pair.observe(case),
                };
                if self.campaign.stop.load(Ordering::Relaxed) {
                    return Err(CampaignError::Interrupted);
                }
                observations.insert(case.name, observation);
            }
        }
        Ok(observations)
    }

    fn start(
        &self,
        runtime: &dyn Runtime,
        profile: Profile,
    ) -> Result<(Session, Shares), RuntimeError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::Files { path, source }
        };
        let token = host::token().map_err(failed(Path::new("/dev/urandom")))?;
        let name = format!("isolation-{token}");
        let folder = self.campaign.folder.join(&name);
        let shares = Shares {
            writable: folder.join("share"),
            read_only: folder.join("share-ro"),
            errors: folder.join("errors"),
        };
        for path in [&shares.writable, &shares.read_only] {
            std::fs::create_dir_all(path).map_err(failed(path))?;
        }
        let container = Container {
            name,
            profile,
            folder,
            shares: shares.clone(),
            probe: self.campaign.probe,
            common_root: self.common_root,
            spec: self.campaign.spec,
            grantable: &self.grantable,
            stop: self.campaign.stop,
        };
        let Started(session) = runtime.start(&container)?;
        Ok((session, shares))
    }
}

impl Pair<'_> {
    /// The container of this place, started anew if it broke.
    fn ready(
        field: &Field<'_>,
        runtime: &dyn Runtime,
        profile: Profile,
        place: &mut Option<(Session, Shares)>,
    ) -> Result<(), RuntimeError> {
        if place
            .as_ref()
            .is_some_and(|(session, _)| session.is_usable())
        {
            return Ok(());
        }
        // The old one is gone before the new one comes.
        *place = None;
        *place = Some(field.start(runtime, profile)?);
        Ok(())
    }

    fn observe(&mut self, case: &Case) -> Observation {
        let started = Self::ready(self.field, self.runtime, self.profile, &mut self.main);
        if let Err(error) = started {
            return no_answer(&error);
        }
        let Some((session, shares)) = &mut self.main else {
            return no_answer(&"the container is gone");
        };
        let stage = Stage {
            host: self.field.host,
            profile: self.profile,
            shares,
            common_root: self.field.common_root,
        };
        let mut scene = match (case.stage)(&stage) {
            Ok(scene) => scene,
            Err(Obstacle(reason)) => return Observation::Obstacle { reason },
        };
        let mut peer_seen = Value::Null;
        let asked = scene.peer.take();
        if let Some((attempt, params)) = &asked {
            let started = Self::ready(self.field, self.runtime, self.profile, &mut self.peer);
            if let Err(error) = started {
                return no_answer(&error);
            }
            let Some((peer, _)) = &mut self.peer else {
                return no_answer(&"the other container is gone");
            };
            match peer.attempt(attempt, params) {
                Ok(seen) => peer_seen = seen,
                Err(error) => {
                    let _ = peer.release();
                    return no_answer(&error);
                }
            }
        }
        let again = || -> Option<Value> {
            let (attempt, params) = asked.as_ref()?;
            let (peer, _) = self.peer.as_mut()?;
            let seen = peer.release().and_then(|()| peer.attempt(attempt, params));
            Some(seen.unwrap_or_else(|error| json!({ "failed": error.to_string() })))
        };
        let observation = observe(session, &mut scene, &peer_seen, again);
        if let Some((peer, _)) = &mut self.peer
            && !peer_seen.is_null()
        {
            // One that does not answer any more is made anew for the next case.
            let _ = peer.release();
        }
        observation
    }
}

/// Makes the attempt, looks, judges, and lets go. Where the attempt ends its container, or a process of it floods, `again` asks the other
/// one.
fn observe(
    session: &mut Session,
    scene: &mut Scene,
    peer_seen: &Value,
    mut again: impl FnMut() -> Option<Value>,
) -> Observation {
    let writer = scene.flood.take().map(|flood| session.flood(flood));
    let mut writer = match writer.transpose() {
        Ok(writer) => writer,
        Err(error) => return no_answer(&error),
    };
    // Before anything is asked: what can be full is full then.
    let held_mib = writer.as_ref().map(Writer::held_mib);
    let mut peer_again = Value::Null;
    let seen = match session.attempt(scene.attempt, &scene.params) {
        Ok(seen) => seen,
        Err(SessionError::Ended { .. }) if scene.may_end => {
            peer_again = again().unwrap_or_default();
            json!({ "ended": session.last_words() })
        }
        Err(error) => {
            if matches!(error, SessionError::Attempt { .. }) {
                let _ = session.release();
            }
            return no_answer(&error);
        }
    };
    let mut watched = (scene.watch)(&seen);
    let mut more = Map::new();
    if scene.adds {
        match session.added() {
            Ok(added) => drop(more.insert("added".to_owned(), added)),
            Err(error) => {
                let _ = session.release();
                return no_answer(&error);
            }
        }
    }
    if let Some(writer) = &mut writer {
        peer_again = again().unwrap_or_default();
        more.insert("held_mib".to_owned(), json!(held_mib));
        more.insert("writer_ended".to_owned(), writer.end().into());
    }
    if !peer_seen.is_null() {
        more.insert("peer".to_owned(), peer_seen.clone());
        more.insert("peer_again".to_owned(), peer_again);
    }
    if !more.is_empty() {
        more.insert("host".to_owned(), watched);
        watched = more.into();
    }
    let finding: Finding = (scene.judge)(&seen, &watched);
    let _ = session.release();
    Observation::Seen {
        seen: shortened(seen),
        watched: shortened(watched),
        finding,
    }
}

/// As much of every text as a report has room for.
fn shortened(value: Value) -> Value {
    const CHARACTERS: usize = 1_000;
    match value {
        Value::String(text) => match text.char_indices().nth(CHARACTERS) {
            Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()).into(),
            None => text.into(),
        },
        Value::Array(list) => list.into_iter().take(100).map(shortened).collect(),
        Value::Object(object) => object
            .into_iter()
            .map(|(name, value)| (name, shortened(value)))
            .collect(),
        other => other,
    }
}

fn no_answer(error: &dyn std::fmt::Display) -> Observation {
    Observation::NoAnswer {
        reason: error.to_string(),
    }
}
