"""Tables of trained runs: the main job, its costs, simulated tables, the app, the population."""

from __future__ import annotations

from benchmarks.report.tables import load, signed, table

NAMES = {
    "run": "**this run**",
    "full": "before rounding",
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "class_weight": "class weights",
    "lightgbm": "LightGBM, same features",
    "stage1": "trees, stage 1",
    "stage2": "trees, stage 2",
    "network": "network on trees",
}


def main_job() -> str:
    """Figures of every model on every data set."""
    heading = ["data", "model", "AP", "F1, tuned", "F1 at .5", "false alarms per 10k at recall .60 / .70 / .80", "ECE"]
    rows = []
    for data, result in load("main_job")["datasets"].items():
        for name, figures in result["models"].items():
            alarms = [figures["false_alarms_per_10k_at_recall"][recall] for recall in ("0.60", "0.70", "0.80")]
            counts = " / ".join("-" if value is None else f"{value:.1f}" for value in alarms)
            values = [f"{figures[key]:.3f}" for key in ("average_precision", "f1", "f1_at_half")]
            rows.append([data, NAMES[name], *values, counts, f"{figures['ece']:.4f}"])
    return table(heading, rows)


def main_job_seeds() -> str:
    """Average precision of the main job beside that of LightGBM, with other seeds of the training."""
    found = {data: {"0": result} for data, result in load("main_job")["datasets"].items()}
    for data, seeds in load("main_job_seeds")["datasets"].items():
        found[data] |= seeds
    rows = []
    for data, seeds in found.items():
        for seed, result in seeds.items():
            values = [f"{result['models'][name]['average_precision']:.4f}" for name in ("run", "stage2", "lightgbm", "one_to_one")]
            rows.append([data, seed, *values, signed(result["against"]["lightgbm"]["average_precision"], digits=4)])
    return table(["data", "seed", "this run", "trees, stage 2", "LightGBM", "1:1 over-sampling", "run less LightGBM [95 %]"], rows)


def costs() -> str:
    """Time and memory of the main job."""
    rows = [
        [data, result["budget"], result["threads"], f"{result['minutes']:.1f}", f"{result['peak_gib']:.1f} GiB"]
        for data, result in load("main_job")["datasets"].items()
    ]
    return table(["data", "budget", "threads", "minutes, all models", "peak memory"], rows)


def simulated_seeds() -> str:
    """Average precision on every simulated table."""
    content = load("simulated_seeds")
    names = [name for name in NAMES if all(name in models for models in content["tables"].values())]
    rows = [[seed, *(f"{models[name]['average_precision']:.3f}" for name in names)] for seed, models in content["tables"].items()]
    against = [content["average_precision_against"][name] for name in names if name != "run"]
    differences = [f"{other['mean_difference']:+.3f} (± {other['standard_error']:.3f})" for other in against]
    rows.append(["this run minus it, mean (standard error)", "", *differences])
    return table(["simulated table, seed", *(NAMES[name] for name in names)], rows)


def app_pages() -> str:
    """Seconds of every page of the app on a large run."""
    content = load("app_pages")
    browser = content["browser"]
    rows = [
        [page.capitalize(), *(f"{times[key]:.2f} s" for key in ("first", "again")), f"{browser[page]:.2f} s" if page in browser else "-"]
        for page, times in content["pages"].items()
    ]
    return table([f"page, {content['rows']:,} test rows", "first time", "again", "in a browser"], rows)


def population() -> str:
    """Speed of the population of students, and the cost of scoring for hardness."""
    content = load("population")
    speed, shares = content["throughput"], content["share_of_an_epoch_scoring_for_hardness"]
    batches, rounds = speed["student_batches_per_second"], speed["ratio_by_round"]
    ratio = f"{speed['ratio']:.1f} ({min(rounds):.1f} to {max(rounds):.1f})"
    rows = [
        ["student-batches per CPU-second, one student per process (`SubprocVecEnv`)", f"{batches['subproc_vec_env']:,}"],
        [f"the same of {speed['students']} stacked students (`PopulationVecEnv`)", f"{batches['population_vec_env']:,}"],
        [f"ratio, median of {speed['rounds']} alternating rounds (range)", ratio],
        ["share of an epoch that scoring training rows for hardness takes: population", f"{100 * shares['population']:.1f} %"],
        ["the same: sequence classifier", f"{100 * shares['classifier']:.1f} %"],
    ]
    return table(["", ""], rows)
