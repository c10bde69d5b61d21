package org.tornadomoe.checkpoint;

import java.util.List;

/** Names of an expert's projections. */
record ExpertNames(String gate, String up, String down) {
    /** The names that are known; the first ones are given where the file has none. */
    static final List<ExpertNames> KNOWN = List.of(
            new ExpertNames("gate_proj", "up_proj", "down_proj"),
            new ExpertNames("w1", "w3", "w2"),
            new ExpertNames("w1", "v1", "w2"),
            new ExpertNames("linear_gate", "up_proj", "down_proj"),
            new ExpertNames("linear", "linear_v", "linear_1"),
            new ExpertNames("gate", "up", "down"),
            new ExpertNames("", "fc1", "fc2"),
            new ExpertNames("", "wi", "wo"));

    /** A module of both, with the up projection before the gate (Hunyuan). */
    static final String UP_AND_GATE = "gate_and_up_proj";

    List<String> under(String expert) {
        return List.of(expert + gate, expert + up, expert + down);
    }

    /** Where there is no gate the up projection stands for it, too. */
    ExpertNames gated(boolean gated) {
        return gated ? this : new ExpertNames(up, up, down);
    }

    /** All three, as in {@code {gate_proj,up_proj,down_proj}}. */
    @Override
    public String toString() {
        return "{" + String.join(",", under("")) + "}";
    }
}
