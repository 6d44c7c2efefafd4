"""Runs that were stopped, or are made anew: what they go on with, what is refused, what is never lost."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from attention_branch.errors import UserError
from attention_branch.reproduce import record as records
from attention_branch.reproduce.arrays import Arrays, preprocessing_of
from attention_branch.reproduce.conduct import unfinished
from attention_branch.reproduce.groups import read_groups
from attention_branch.reproduce.small_run import SmallRun
from reproduce_runs import SHORT, finish, one_epoch, opened, pictures, prepared

assert pictures
assert prepared  # fixtures of the tests below


def test_a_stopped_run_ends_as_if_it_had_not_been(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (whole,) = jobs(tmp_path / "whole")
    (parted,) = jobs(tmp_path / "parted")
    wanted = finish(whole, arrays)
    one_epoch(parted, arrays)
    left = records.read(parted.record)
    assert left["status"] == "unfinished"
    assert left["epochs_done"] == 1
    assert not read_groups([tmp_path / "parted"])
    found = finish(parted, arrays, steps=1)
    for name in ("curves", "last", "best_on_validation", "best_on_test", "test_answers", "map", "settings"):
        assert found[name] == wanted[name], name


def test_runs_of_another_kind_are_not_continued(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    one_epoch(job, arrays)
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, lr=0.2))
    with pytest.raises(UserError, match=r"another configuration: lr is 0\.1 there and 0\.2 here"):
        records.check_same(other, records.read(job.record))
    changed = dataclasses.replace(job, data=job.data | {"fingerprint": "0"})
    with pytest.raises(UserError, match="other images"):
        records.check_same(changed, records.read(job.record))


def test_a_state_of_other_settings_is_not_gone_on_with(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    one_epoch(job, arrays)
    job.record.unlink()
    other = dataclasses.replace(job, config=dataclasses.replace(job.config, lr=0.2))
    with pytest.raises(UserError, match="is of a run with other settings or on other data"):
        SmallRun(other, arrays, "cpu")
    assert SmallRun(job, arrays, "cpu").trainer.epoch == 1


def test_a_finished_record_survives_until_its_run_is_made_anew(prepared, tmp_path):
    """A figure needs the network of a run that is finished and was not kept: the run is made anew, and is stopped."""
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    wanted = finish(job, arrays)
    (asked,) = jobs(tmp_path, keep=True)
    assert unfinished([job], resume=False) == []
    assert unfinished([asked], resume=False) == [asked]
    one_epoch(asked, arrays)
    assert records.read(job.record) == wanted
    assert read_groups([tmp_path])[0].seeds == [0]
    with pytest.raises(UserError, match="add --resume"):
        unfinished([asked], resume=False)
    # Who does not need the network has the run; its state is not lost for that.
    assert unfinished([job], resume=True) == []
    assert unfinished([asked], resume=True) == [asked]
    anew = SmallRun(asked, arrays, "cpu")
    assert anew.trainer.epoch == 1
    while not anew.done:
        anew.advance(100)
    assert records.read(job.record)["last"] == wanted["last"]
    assert unfinished([asked], resume=False) == []
    # What a kill between record and removal leaves is older than the record.
    job.checkpoint.write_bytes(b"left")
    os.utime(job.checkpoint, (0, 0))
    assert unfinished([asked], resume=False) == []
    assert not job.checkpoint.exists()


def test_half_a_run_on_large_pictures_is_not_the_network_asked_for(prepared, tmp_path):
    """Made anew for its network and stopped after one of two epochs: the record counts, the network does not."""
    jobs, arrays, _ = prepared
    (small,) = jobs(tmp_path, keep=True)
    finish(small, arrays)
    job = dataclasses.replace(small, cell=dataclasses.replace(small.cell, role="celeba"))
    job.network.mkdir()
    metrics = job.network.parent / "metrics.jsonl"
    metrics.write_text('{"epoch": 0}\n')
    assert unfinished([job], resume=True) == [job]
    with pytest.raises(UserError, match="add --resume"):
        unfinished([job], resume=False)
    metrics.write_text('{"epoch": 0}\n{"epoch": 1}\n')
    assert unfinished([job], resume=False) == []


def test_another_precision_is_refused_with_the_way_out(prepared, tmp_path):
    jobs, arrays, _ = prepared
    (job,) = jobs(tmp_path)
    one_epoch(job, arrays)
    (other,) = jobs(tmp_path, protocol=dataclasses.replace(SHORT, precision="bf16"))
    with pytest.raises(UserError, match=r"precision is 32 there and bf16 here; give --precision 32 as there, or name"):
        unfinished([other], resume=True)
    job.record.unlink()
    with pytest.raises(UserError, match=r"other settings or on other data; give --precision 32 as there, or remove"):
        SmallRun(other, arrays, "cpu")


def test_a_state_is_not_gone_on_with_on_other_pixels(prepared, pictures, tmp_path):
    """The same names and labels, one byte of one picture changed."""
    jobs, arrays, data = prepared
    (job,) = jobs(tmp_path)
    preprocessing = preprocessing_of(job.config, data)
    same = Arrays(tmp_path / "same", data).write(data, preprocessing)
    assert same.pixels == arrays.pixels
    shutil.copytree(pictures, tmp_path / "changed")
    touched = tmp_path / "changed" / "test" / "class3" / "2.png"
    pixels = np.array(Image.open(touched))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(touched)
    _, after = opened("cifar10-jpeg", tmp_path / "changed")
    assert after.record()["fingerprint"] == job.data["fingerprint"]
    other = Arrays(tmp_path / "other", after).write(after, preprocessing)
    assert other.pixels != arrays.pixels

    one_epoch(job, arrays)
    with pytest.raises(UserError, match=r"was begun on other pixels under the same names .*; remove it"):
        SmallRun(job, other, "cpu")
    record = finish(job, same)
    assert record["data"]["pixels"] == arrays.pixels
    # Finished runs are not refused for it: their pictures may be decoded anew by another version.
    assert unfinished([job], resume=False) == []
    job.record.write_text(json.dumps(record | {"data": record["data"] | {"pixels": "0"}}))
    assert unfinished([job], resume=False) == []
