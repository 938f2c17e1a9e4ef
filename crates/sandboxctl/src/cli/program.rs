//! What stands after the options of `run` and `create`: the image, and all that goes to its program.

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use sandbox_image::Reference;

const ID: &str = "program";

/// The image, and the command and its arguments. One positional of clap's for both: of two, an option that `run`
/// knows too would be taken for `run`'s own where the command begins with it (`--entrypoint sh IMAGE -c …`).
#[derive(Debug)]
pub(crate) struct Program {
    /// The image to run.
    pub(crate) image: Reference,
    /// The command and its arguments, instead of the image's; empty for those.
    pub(crate) command: Vec<String>,
}

impl FromArgMatches for Program {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut words = matches.get_many::<String>(ID).into_iter().flatten();
        let image = words.next().ok_or_else(|| {
            Error::raw(ErrorKind::MissingRequiredArgument, "<IMAGE> is missing\n")
        })?;
        let image = image.parse().map_err(|error| {
            let message = format!("invalid value '{image}' for '<IMAGE>': {error}\n");
            Error::raw(ErrorKind::ValueValidation, message)
        })?;
        Ok(Self {
            image,
            command: words.cloned().collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Program {
    fn augment_args(command: Command) -> Command {
        command.arg(
            Arg::new(ID)
                .value_names(["IMAGE", "COMMAND"])
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .help("The image to run, and the command and its arguments instead of the image's"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
