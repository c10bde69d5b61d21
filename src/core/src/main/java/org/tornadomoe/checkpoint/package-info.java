/** A checkpoint's MoE layers read and quantised: layers, routers and experts, and writers of int8 checkpoints. */
@NullMarked
package org.tornadomoe.checkpoint;

import org.jspecify.annotations.NullMarked;
