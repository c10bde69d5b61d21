/**
 * The interfaces of kernel classes: {@link org.tornadomoe.kernel.FusedMoeExperts} says which layers it can serve and
 * makes {@link org.tornadomoe.kernel.MoeKernel}s, which run one layer. {@link org.tornadomoe.kernel.PrepareAndFinalize}
 * names the stages around the experts.
 */
@NullMarked
package org.tornadomoe.kernel;

import org.jspecify.annotations.NullMarked;
