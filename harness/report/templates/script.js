// A phone has no hover: a tap on a number shows its note at the foot of the page.
const why=document.getElementById('why');
document.addEventListener('click',e=>{const cell=e.target.closest('[data-note]');
if(cell){why.textContent=cell.title;why.hidden=false}else if(!why.contains(e.target))why.hidden=true});
document.addEventListener('keydown',e=>{if(e.key==='Escape')why.hidden=true});
// There the tap does not leave the page: the note has the way to the answers at its end.
document.addEventListener('click',e=>{const to=e.target.closest('td[data-note] a');
if(to&&matchMedia('(hover:none)').matches){e.preventDefault();const a=document.createElement('a');
a.href=to.href;a.textContent='read the answers';why.append('\n',a)}});
